"""Long sums and a calculator; the corpus mostly guesses, and seldom calls the tool that knows."""
