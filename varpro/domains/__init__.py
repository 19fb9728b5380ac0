"""Where neurons live, one domain a file: law of the teacher, seeded draws, projection, distance."""
