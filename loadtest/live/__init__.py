"""What all tools share that put load on a live server: clients, records of requests, figures, resources."""
