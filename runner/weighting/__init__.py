"""Numbers by place: what a recipe says of a parameter, at every component, block and key."""
