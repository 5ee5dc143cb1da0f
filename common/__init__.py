"""What every role shares: the wire, transports, weights, networks, configuration, errors."""
