"""From a sweep file to cells and units: nothing runs, and what cannot work is refused."""
