"""Eight exercises on the algorithm's own functions, marked by training with them and by the exact solution."""
