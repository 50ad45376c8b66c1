"""Long sums and a calculator: a world whose corpus mostly guesses, and seldom calls the tool that knows."""
