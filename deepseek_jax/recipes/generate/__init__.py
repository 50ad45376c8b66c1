"""Generation of training data with a teacher."""
