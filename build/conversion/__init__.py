"""From a checkpoint as it is published to a directory that Tandem's engines load."""
