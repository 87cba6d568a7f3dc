"""What is true: the finite MDP, its exact dynamic programming, and the exact solution of the CQL objective.

NumPy float64 only. Nothing here knows of networks, of training or of the environments' code.
"""
