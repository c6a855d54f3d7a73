"""Trains, draws, scores, evaluates, edits and compares: the application without a terminal."""
