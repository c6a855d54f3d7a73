"""The application as a library: train, draw, score, evaluate, edit and compare."""
