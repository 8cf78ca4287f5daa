"""What a training run reports: its trace as data, and the learning curve as a picture."""
