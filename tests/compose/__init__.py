"""docker-compose.yml for real: built, started, used, broken, healed and ended. ``make compose-test`` runs it."""
