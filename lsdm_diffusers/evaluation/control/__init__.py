"""Does guidance steer nodules? Its arms, what is measured of each, the tables and the pictures."""
