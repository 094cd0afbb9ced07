"""People's own pictures: read from files, and made into what networks are trained on."""
