"""One request is one trace, through all processes; off unless the deployment asks for it."""
