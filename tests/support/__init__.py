"""What the tests of several rooms share: backends, servers and databases that they run, requests that they invent."""
