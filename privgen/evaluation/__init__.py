"""One file for each question that privgen measures."""
