"""What a run is worth: rollouts and exact evaluation, audit, statistics, pictures."""
