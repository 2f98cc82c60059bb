"""From finished debates to rows: which replies teach whom. Pure."""
