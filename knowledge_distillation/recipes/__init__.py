"""A YAML file of a whole run, made into models, data and a distiller; grids of such runs."""
