"""Models of other libraries: their folders and files in, ours out. Nothing is unpickled."""
