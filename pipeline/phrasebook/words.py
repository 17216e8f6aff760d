"""What CLDR does not know: which article and preposition a name takes, and the nouns of our sentences."""

# Territories by the French article of their names: le Japon, la France, l'Italie, les Pays-Bas.
COUNTRIES = {
    "le": "BR BW CA CL CR DK GH JP KE KH KZ LK LU MA MX MZ NI NP PA PE PT PY RW VN",
    "la": "BE BG BO CH CN CO CZ FI FR GE GR HR HU JO KR LT LV MN MY NA NO NZ PL RO RS SE SI SK TH TN TR TZ ZM",
    "l'": "AL AM AO AR AT AU DE DZ EC EE EG ES ET ID IE IN IS IT UA UG UY UZ ZA",
    "les": "NL",
}
# The few whose German names take an article: nominative and accusative, dative (den in the plural).
GERMAN_ARTICLES = {
    **dict.fromkeys(("CH", "MN", "SK", "TR", "UA"), ("die ", "der ")),
    "NL": ("die ", "den "),
}

LANGUAGES = (
    "ar bg ca cs da de el en es et eu fi fr ga hi hr hu hy id is it ja ka ko lt lv nl no pl pt ro ru sk sl sq sv sw "
    "th tr uk vi zh"
)

# CLDR names cities by the time zone that they stand for.
CITY_ZONES = (
    "Africa/Algiers Africa/Casablanca Africa/Johannesburg Africa/Lagos Africa/Nairobi Africa/Tunis America/Bogota "
    "America/Caracas America/Chicago America/Lima America/Los_Angeles America/Mexico_City America/Montevideo "
    "America/New_York America/Santiago America/Toronto America/Vancouver Asia/Bangkok Asia/Beirut Asia/Dubai "
    "Asia/Seoul Asia/Shanghai Asia/Tashkent Asia/Tokyo Australia/Melbourne Australia/Sydney Europe/Amsterdam "
    "Europe/Athens Europe/Belgrade Europe/Berlin Europe/Bratislava Europe/Brussels Europe/Bucharest Europe/Budapest "
    "Europe/Copenhagen Europe/Dublin Europe/Istanbul Europe/Lisbon Europe/Ljubljana Europe/London Europe/Madrid "
    "Europe/Oslo Europe/Paris Europe/Prague Europe/Riga Europe/Rome Europe/Sofia Europe/Stockholm Europe/Tallinn "
    "Europe/Vienna Europe/Vilnius Europe/Warsaw Europe/Zagreb Europe/Zurich Pacific/Auckland"
)

# German writes the adjective of these currencies small inside a sentence: zwölf dänische Kronen.
ADJECTIVAL_CURRENCIES = ["AUD", "CAD", "CZK", "DKK", "GBP", "NOK", "SEK"]
CURRENCIES = ["CHF", "EUR", "USD", *ADJECTIVAL_CURRENCIES]

PEOPLE = (
    "Anna Boris Clara Daniel David Emma Erik Eva Felix Gabriel Ida Jonas Julia Laura Lena Leo Maria Martin "
    "Nina Nora Oscar Paul Robert Sarah Simon Stella Thomas Valentin Victor"
)


def _nouns(*rows: tuple[str, str, str]) -> list[dict[str, str]]:
    return [dict(zip(("en", "de", "fr"), row, strict=True)) for row in rows]


# Plural in all three languages; every count before them is at least two.
NOUNS = _nouns(
    ("apples", "Äpfel", "pommes"),
    ("bags", "Taschen", "sacs"),
    ("baskets", "Körbe", "paniers"),
    ("blankets", "Decken", "couvertures"),
    ("books", "Bücher", "livres"),
    ("bottles", "Flaschen", "bouteilles"),
    ("candles", "Kerzen", "bougies"),
    ("coats", "Mäntel", "manteaux"),
    ("cups", "Tassen", "tasses"),
    ("flowers", "Blumen", "fleurs"),
    ("forks", "Gabeln", "fourchettes"),
    ("glasses", "Gläser", "verres"),
    ("gloves", "Handschuhe", "gants"),
    ("hats", "Hüte", "chapeaux"),
    ("keys", "Schlüssel", "clés"),
    ("lemons", "Zitronen", "citrons"),
    ("letters", "Briefe", "lettres"),
    ("newspapers", "Zeitungen", "journaux"),
    ("oranges", "Orangen", "oranges"),
    ("pencils", "Bleistifte", "crayons"),
    ("photos", "Fotos", "photos"),
    ("plates", "Teller", "assiettes"),
    ("postcards", "Postkarten", "cartes postales"),
    ("scarves", "Schals", "écharpes"),
    ("shirts", "Hemden", "chemises"),
    ("spoons", "Löffel", "cuillères"),
    ("stamps", "Briefmarken", "timbres"),
    ("suitcases", "Koffer", "valises"),
    ("towels", "Handtücher", "serviettes"),
    ("umbrellas", "Regenschirme", "parapluies"),
)

SOLIDS = _nouns(
    ("apricots", "Aprikosen", "abricots"),
    ("bread", "Brot", "pain"),
    ("butter", "Butter", "beurre"),
    ("carrots", "Karotten", "carottes"),
    ("cheese", "Käse", "fromage"),
    ("cherries", "Kirschen", "cerises"),
    ("chocolate", "Schokolade", "chocolat"),
    ("coffee", "Kaffee", "café"),
    ("fish", "Fisch", "poisson"),
    ("flour", "Mehl", "farine"),
    ("garlic", "Knoblauch", "ail"),
    ("ham", "Schinken", "jambon"),
    ("honey", "Honig", "miel"),
    ("meat", "Fleisch", "viande"),
    ("mushrooms", "Pilze", "champignons"),
    ("onions", "Zwiebeln", "oignons"),
    ("pasta", "Nudeln", "pâtes"),
    ("potatoes", "Kartoffeln", "pommes de terre"),
    ("rice", "Reis", "riz"),
    ("salt", "Salz", "sel"),
    ("strawberries", "Erdbeeren", "fraises"),
    ("sugar", "Zucker", "sucre"),
    ("tea", "Tee", "thé"),
    ("tomatoes", "Tomaten", "tomates"),
)

LIQUIDS = _nouns(
    ("apple juice", "Apfelsaft", "jus de pomme"),
    ("cream", "Sahne", "crème"),
    ("lemonade", "Limonade", "limonade"),
    ("milk", "Milch", "lait"),
    ("olive oil", "Olivenöl", "huile d'olive"),
    ("orange juice", "Orangensaft", "jus d'orange"),
    ("soup", "Suppe", "soupe"),
    ("vinegar", "Essig", "vinaigre"),
    ("water", "Wasser", "eau"),
)
