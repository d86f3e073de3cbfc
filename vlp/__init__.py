"""Pretraining of vision-language encoders from several training signals in one graph."""
