"""Linear layers with weights of 8 bits for the few rows of a generation step on CUDA."""

from .few_row_layers import FewRowLayers, FewRowLinear, few_row_layer
from .few_row_operator import few_row_linear


__all__ = ["FewRowLayers", "FewRowLinear", "few_row_layer", "few_row_linear"]
