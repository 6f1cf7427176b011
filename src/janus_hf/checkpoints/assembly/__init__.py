"""What `assemble_checkpoint` does with each part: find and read its files, learn its sizes, fill what no part has."""
