"""Colours of HD maps, RGB in [0, 255].

NVIDIA/flashdreams, the renderer of integrations_v2/omnidreams: the network was trained
on maps of these colours over black.
"""

LANE_LINE = (98, 183, 249)
WHITE_LINE = (255, 255, 255)
YELLOW_LINE = (255, 217, 0)
ROAD_BOUNDARY = (253, 1, 232)
CROSSWALK = (139, 93, 255)
WAIT_LINE = (108, 179, 59)
INTERSECTION = (87, 110, 255)
ISLAND = (255, 155, 37)

CLASSES = {
    "car": ((0, 46, 136), (126, 206, 255)),
    "truck": ((204, 55, 0), (255, 192, 64)),
    "pedestrian": ((148, 0, 62), (255, 124, 171)),
    "cyclist": ((0, 80, 66), (102, 208, 198)),
    "other": ((53, 26, 20), (166, 136, 125)),
    "pole": ((183, 69, 177), (183, 69, 177)),
    "sign": ((8, 2, 255), (8, 2, 255)),
    "light": ((100, 100, 100), (100, 100, 100)),
}
"""Colour at the rear and at the front of a box, by its class."""

NAMES = tuple(CLASSES)
"""Classes in the order of their numbers."""
