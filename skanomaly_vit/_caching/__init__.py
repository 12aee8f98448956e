"""What is kept between fits: on disk, and in memory."""
