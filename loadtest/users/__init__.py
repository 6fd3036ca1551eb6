"""Users as locust runs them: one kind of behaviour a file. ``locustfile.py`` brings them together."""
