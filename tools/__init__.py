"""What makes the tables of the documentation, and the data that the package ships."""
