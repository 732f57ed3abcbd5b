"""Predicts memory and step time of a training job without a GPU, and searches layouts that fit."""
