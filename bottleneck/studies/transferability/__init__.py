"""The transfer study of Yosinski et al. 2014, on the user's own images."""
