"""Codes and dequantised values out of the packed store."""
