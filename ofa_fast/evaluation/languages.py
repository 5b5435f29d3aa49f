"""Languages by the code that a file is named by: their script and family, for the groups of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

OTHER = "other"

# ISO 639-3, ISO 639-1 where there is one, the script they are mostly written in (ISO 15924), by family (Glottolog's
# names; Latin stands with its daughters). It holds what test sets often have; a code that is not here is "other".
_TABLE = {
    "Afro-Asiatic": """aar/aa:Latn amh/am:Ethi apc:Arab ara/ar:Arab arb:Arab arz:Arab cop:Copt hau/ha:Latn heb/he:Hebr
        kab:Latn mlt/mt:Latn orm/om:Latn gaz:Latn som/so:Latn syr:Syrc taq:Latn tir/ti:Ethi tzm:Tfng""",
    "Algic": "cre/cr:Cans oji/oj:Cans",
    "Atlantic-Congo": """bem:Latn ewe/ee:Latn ful/ff:Latn fon:Latn ibo/ig:Latn kik/ki:Latn kin/rw:Latn
        kon/kg:Latn lin/ln:Latn lug/lg:Latn nya/ny:Latn run/rn:Latn sna/sn:Latn sot/st:Latn ssw/ss:Latn swa/sw:Latn
        swh:Latn tsn/tn:Latn tso/ts:Latn twi/tw:Latn umb:Latn wol/wo:Latn xho/xh:Latn yor/yo:Latn zul/zu:Latn""",
    "Austroasiatic": "kha:Latn khm/km:Khmr sat:Olck vie/vi:Latn",
    "Austronesian": """ace:Latn ban:Latn ceb:Latn cha/ch:Latn fij/fj:Latn haw:Latn hil:Latn ilo:Latn ind/id:Latn
        jav/jv:Latn mlg/mg:Latn plt:Latn min:Latn mri/mi:Latn msa/ms:Latn zsm:Latn pag:Latn pam:Latn smo/sm:Latn
        sun/su:Latn tgl/tl:Latn ton/to:Latn tah/ty:Latn war:Latn""",
    "Aymaran": "aym/ay:Latn ayr:Latn",
    "Basque": "eus/eu:Latn",
    "Constructed": "epo/eo:Latn ido/io:Latn ina/ia:Latn jbo:Latn",
    "Creole": "hat/ht:Latn pap:Latn pcm:Latn tpi:Latn bis/bi:Latn",
    "Dravidian": "kan/kn:Knda mal/ml:Mlym tam/ta:Taml tel/te:Telu",
    "Eskimo-Aleut": "kal/kl:Latn iku/iu:Cans",
    "Indo-European": """afr/af:Latn als:Latn ang:Latn arg/an:Latn asm/as:Beng ast:Latn awa:Deva bel/be:Cyrl
        ben/bn:Beng bho:Deva bre/br:Latn bul/bg:Cyrl bos/bs:Latn cat/ca:Latn ces/cs:Latn chu/cu:Cyrl ckb:Arab
        cym/cy:Latn dan/da:Latn deu/de:Latn div/dv:Thaa ell/el:Grek eng/en:Latn fao/fo:Latn fas/fa:Arab pes:Arab
        fra/fr:Latn fry/fy:Latn fro:Latn fur:Latn gla/gd:Latn gle/ga:Latn glg/gl:Latn glv/gv:Latn got:Goth grc:Grek
        guj/gu:Gujr hin/hi:Deva hrv/hr:Latn hsb:Latn hye/hy:Armn isl/is:Latn ita/it:Latn kas/ks:Arab kmr:Latn
        kur/ku:Latn lat/la:Latn lav/lv:Latn lvs:Latn lij:Latn lim/li:Latn lit/lt:Latn lmo:Latn ltz/lb:Latn mai:Deva
        mar/mr:Deva mkd/mk:Cyrl nds:Latn nep/ne:Deva npi:Deva nld/nl:Latn nno/nn:Latn nob/nb:Latn nor/no:Latn
        oci/oc:Latn ory:Orya ori/or:Orya oss/os:Cyrl pan/pa:Guru pol/pl:Latn por/pt:Latn prs:Arab pus/ps:Arab pbt:Arab
        roh/rm:Latn ron/ro:Latn rus/ru:Cyrl san/sa:Deva scn:Latn sco:Latn sin/si:Sinh slk/sk:Latn slv/sl:Latn
        snd/sd:Arab spa/es:Latn sqi/sq:Latn srd/sc:Latn srp/sr:Cyrl swe/sv:Latn szl:Latn tgk/tg:Cyrl ukr/uk:Cyrl
        urd/ur:Arab vec:Latn yid/yi:Hebr ydd:Hebr""",
    "Iroquoian": "chr:Cher",
    "Japonic": "jpn/ja:Jpan",
    "Kartvelian": "kat/ka:Geor xmf:Geor",
    "Koreanic": "kor/ko:Hang",
    "Mande": "bam/bm:Latn dyu:Latn nqo:Nkoo",
    "Mayan": "kek:Latn mam:Latn quc:Latn tzh:Latn tzo:Latn yua:Latn",
    "Mongolic-Khitan": "mon/mn:Cyrl khk:Cyrl bua:Cyrl",
    "Nilotic": "din:Latn dik:Latn luo:Latn nus:Latn",
    "Quechuan": "que/qu:Latn quy:Latn quz:Latn qvi:Latn",
    "Sino-Tibetan": """bod/bo:Tibt cmn:Hans zho/zh:Hans yue:Hant wuu:Hans lzh:Hant gan:Hans hak:Hant nan:Latn
        dzo/dz:Tibt kac:Latn lus:Latn mni:Beng mya/my:Mymr""",
    "Tai-Kadai": "lao/lo:Laoo shn:Mymr tha/th:Thai",
    "Tupian": "grn/gn:Latn gug:Latn",
    "Turkic": """aze/az:Latn azj:Latn bak/ba:Cyrl chv/cv:Cyrl crh:Latn kaz/kk:Cyrl kir/ky:Cyrl sah:Cyrl tat/tt:Cyrl
        tuk/tk:Latn tur/tr:Latn uig/ug:Arab uzb/uz:Latn uzn:Latn""",
    "Uralic": """est/et:Latn fin/fi:Latn hun/hu:Latn kpv:Cyrl mdf:Cyrl myv:Cyrl sme/se:Latn udm:Cyrl vep:Latn""",
    "Uto-Aztecan": "nah:Latn nhn:Latn",
}

_ENTRIES = [
    (*codes.partition("/")[::2], script, family)
    for family, text in _TABLE.items()
    for codes, _, script in (entry.partition(":") for entry in text.split())
]
_KNOWN = {code: (script, family) for long, short, script, family in _ENTRIES for code in (long, short) if code}
_SHORT = {long: short for long, short, _, _ in _ENTRIES if short}


def script_and_family(language: str) -> tuple[str, str]:
    """Of a code such as "deu", "de", "deu_Latn" (whose script is taken at its word) or "zh-Hant"; else "other"."""
    code, _, named = language.replace("-", "_").partition("_")
    script, family = _KNOWN.get(code, (OTHER, OTHER))
    return (named if len(named) == 4 and named.istitle() else script), family


def find_language(names: Sequence[str], language: str, data: Path) -> str:
    """The one of ``names`` that is ``language``: as it stands, else without its script, else by its ISO 639-1 code.

    Raises:
        FileNotFoundError: none is, or several are.
    """
    if language in names:
        return language
    for wanted in (language, _SHORT.get(language)):
        matching = sorted(name for name in names if name.split("_")[0] == wanted)
        if len(matching) == 1:
            return matching[0]
        if matching:
            raise FileNotFoundError(f"data: {data} has {', '.join(matching)} for {language!r}: name one of them")
    raise FileNotFoundError(f"data: {data} has no {language!r}; it has {', '.join(sorted(names)) or 'no language'}")
