"""What is kept between the two passes, and what is computed again."""
