"""Guess a number from "higher" and "lower": a world whose corpus has games with mostly random guesses."""
