"""Scores of label maps: metrics, lesions, intervals over cases, comparisons of runs."""
