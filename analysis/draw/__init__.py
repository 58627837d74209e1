"""How a chart is put together from marks, whatever it shows."""
