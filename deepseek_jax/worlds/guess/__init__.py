"""Guess a number from "higher" and "lower"; the corpus plays with mostly random guesses."""
