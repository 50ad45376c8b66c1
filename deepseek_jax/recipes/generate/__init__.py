"""Data from a teacher."""
