"""How sure a model is, and whether that can be believed.

- `scores`: one number an image, higher = less sure
- `metrics`: calibration, selective prediction and detection, with intervals
- `calibration_intervals`: intervals of calibration errors, which lean upwards
- `calibration`: temperature, vector and isotonic scaling
- `conformal`: sets that hold the right class with a promised probability, plain and robust
- `abstaining`: a wrapper that answers "unsure" to keep a promised risk or coverage
- `detection`: a detector that may reject, and what an attacker gets past it
- `goals`, `attacks`: attacks on uncertainty itself, verified on the original model
- `human`: people as the yardstick
"""
