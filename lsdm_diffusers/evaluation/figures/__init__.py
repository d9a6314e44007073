"""The thesis' Figures 5.1 to 5.9: the images they show, and a drawing function for each."""
