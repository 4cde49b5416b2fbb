"""A trace drawn: as a graph, and as a page."""
