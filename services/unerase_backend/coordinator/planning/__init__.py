"""What an audit will do, computed before it is accepted: a request becomes cases and units."""
