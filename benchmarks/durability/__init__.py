"""What proves the durable memory: a disk that loses its power, histories on it, and chaos."""
