"""The command line: ``scoresde train | sample | likelihood | info``."""
