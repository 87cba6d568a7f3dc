"""Discrete Conservative Q-Learning and Behaviour Cloning by hand, beside their exact solutions."""
