"""From received bytes to a radiograph: header, admission, pixel data, display."""
