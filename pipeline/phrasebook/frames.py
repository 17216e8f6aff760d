"""The sentences, each in English, German and French, with gaps for what `slots.py` names.

`{city}` is the slot's plain form, `{city[of]}` another one; `{city1}` and `{city2}` are two different cities.
A sentence says the same in all three languages, nothing more in one than in the others, and none is part of
another, so that each has exactly one translation.
"""

from typing import NamedTuple


class Frame(NamedTuple):
    en: str
    de: str
    fr: str


FRAMES = [
    Frame(*texts)
    for texts in (
        # Travel
        (
            "The train to {european_city} leaves on {weekday} at {time}.",
            "Der Zug nach {european_city} fährt am {weekday} um {time} ab.",
            "Le train pour {european_city} part {weekday} à {time}.",
        ),
        (
            "The flight from {city1} to {city2} takes {duration}.",
            "Der Flug von {city1} nach {city2} dauert {duration}.",
            "Le vol {city1[of]} à {city2} dure {duration}.",
        ),
        (
            "A ticket from {european_city1} to {european_city2} costs {price}.",
            "Eine Fahrkarte von {european_city1} nach {european_city2} kostet {price}.",
            "Un billet {european_city1[of]} à {european_city2} coûte {price}.",
        ),
        (
            "The truck drives from {european_city1} to {european_city2} in {count} hours.",
            "Der Lastwagen fährt in {count} Stunden von {european_city1} nach {european_city2}.",
            "Le camion va {european_city1[of]} à {european_city2} en {count} heures.",
        ),
        (
            "The race from {european_city1} to {european_city2} covers {far}.",
            "Das Rennen von {european_city1} nach {european_city2} geht über {far}.",
            "La course {european_city1[of]} à {european_city2} couvre {far}.",
        ),
        (
            "The train reaches {speed} between {european_city1} and {european_city2}.",
            "Zwischen {european_city1} und {european_city2} erreicht der Zug {speed}.",
            "Le train atteint {speed} entre {european_city1} et {european_city2}.",
        ),
        (
            "Bus {small} runs every {minutes} until {time}.",
            "Der Bus {small} fährt bis {time} alle {minutes}.",
            "Le bus {small} passe toutes les {minutes} jusqu'à {time}.",
        ),
        (
            "{person} waited {count} minutes for the bus to {european_city}.",
            "{person} hat {count} Minuten auf den Bus nach {european_city} gewartet.",
            "{person} a attendu le bus pour {european_city} pendant {count} minutes.",
        ),
        (
            "{person} forgot {count} {noun} on the train to {european_city}.",
            "{person} hat im Zug nach {european_city} {count} {noun} vergessen.",
            "{person} a oublié {count} {noun} dans le train pour {european_city}.",
        ),
        (
            "{person} visited {country[the]} in {month} {year}.",
            "{person} hat im {month} {year} {country[the]} besucht.",
            "{person} a visité {country[the]} en {month} {year}.",
        ),
        (
            "{person} has already visited {country1[the]}, {country2[the]}, and {country3[the]}.",
            "{person} hat schon {country1[the]}, {country2[the]} und {country3[the]} besucht.",
            "{person} a déjà visité {country1[the]}, {country2[the]} et {country3[the]}.",
        ),
        (
            "{person} is visiting {city} for the {ordinal} time.",
            "{person} besucht {city} zum {ordinal[n]} Mal.",
            "{person} visite {city} pour la {ordinal[feminine]} fois.",
        ),
        (
            "The cheapest flight {country[to]} costs {price} in {month}.",
            "Der günstigste Flug {country[to]} kostet im {month} {price}.",
            "Le vol le moins cher vers {country[the]} coûte {price} en {month}.",
        ),
        (
            "The school trip to {european_city} costs {price} per person.",
            "Die Klassenfahrt nach {european_city} kostet {price} pro Person.",
            "Le voyage scolaire à {european_city} coûte {price} par personne.",
        ),
        (
            "A night at the hotel in {city} costs {amount}.",
            "Eine Nacht im Hotel in {city} kostet {amount}.",
            "Une nuit d'hôtel à {city} coûte {amount}.",
        ),
        (
            "Seat {small} is in the {ordinal} row of the theater.",
            "Platz {small} ist in der {ordinal[n]} Reihe des Theaters.",
            "La place {small} se trouve au {ordinal} rang du théâtre.",
        ),
        # Homes, languages, origins
        (
            "{person} has lived in {city} since {month} {year}.",
            "{person} wohnt seit {month} {year} in {city}.",
            "{person} habite à {city} depuis {month} {year}.",
        ),
        (
            "{person} moved to {city} {span[ago]}.",
            "{person} ist {span[ago]} nach {city} gezogen.",
            "{person} a déménagé à {city} {span[ago]}.",
        ),
        (
            "{person} lives {country[in]} and speaks {language1} and {language2}.",
            "{person} lebt {country[in]} und spricht {language1} und {language2}.",
            "{person} vit {country[in]} et parle {language1} et {language2}.",
        ),
        (
            "{person} speaks {language1}, {language2}, and {language3}.",
            "{person} spricht {language1}, {language2} und {language3}.",
            "{person} parle {language1}, {language2} et {language3}.",
        ),
        (
            "{person} has been learning {language} for {span}.",
            "{person} lernt seit {span[dative]} {language}.",
            "{person} apprend {language[the]} depuis {span}.",
        ),
        (
            "The book is available in {language1}, {language2}, and {language3}.",
            "Das Buch ist auf {language1}, {language2} und {language3} erhältlich.",
            "Le livre est disponible en {language1}, en {language2} et en {language3}.",
        ),
        (
            "The film in {language} begins {span[ahead]} at {time}.",
            "Der Film auf {language} beginnt {span[ahead]} um {time}.",
            "Le film en {language} commence {span[ahead]} à {time}.",
        ),
        (
            "The guests come {country1[from]}, {country2[bare_from]}, and {country3[bare_from]}.",
            "Die Gäste kommen {country1[from]}, {country2[bare_from]} und {country3[bare_from]}.",
            "Les invités viennent {country1[from]}, {country2[from]} et {country3[from]}.",
        ),
        (
            "About {percent} of the inhabitants of {city} speak {language}.",
            "Etwa {percent} der Einwohner von {city} sprechen {language}.",
            "Environ {percent} des habitants {city[of]} parlent {language}.",
        ),
        # Calendar and clock
        (
            "Today is {date[weekday]}.",
            "Heute ist {date[weekday]}.",
            "Nous sommes aujourd'hui le {date[weekday]}.",
        ),
        (
            "The deadline ended on {date[weekday]}, at {time}.",
            "Die Frist endete am {date[weekday_dative]}, um {time}.",
            "Le délai a expiré le {date[weekday]} à {time}.",
        ),
        (
            "{person} was already living in {city} on {date}.",
            "{person} wohnte am {date} schon in {city}.",
            "{person} habitait déjà à {city} le {date}.",
        ),
        (
            "The conference in {city} began on {date}.",
            "Die Tagung in {city} begann am {date}.",
            "Le congrès {city[of]} a commencé le {date}.",
        ),
        (
            "The letter from {city1} arrived in {city2} on {date}.",
            "Der Brief aus {city1} ist am {date} in {city2} angekommen.",
            "La lettre {city1[of]} est arrivée à {city2} le {date}.",
        ),
        (
            "{person1}'s birthday is on {day1} and {person2}'s is on {day2}.",
            "{person1} hat am {day1} Geburtstag und {person2} am {day2}.",
            "L'anniversaire {person1[of]} est le {day1} et celui {person2[of]} le {day2}.",
        ),
        (
            "The museum in {city} is closed from {interval[start]} to {interval[end]}.",
            "Das Museum in {city} ist vom {interval[start]} bis zum {interval[end]} geschlossen.",
            "Le musée {city[of]} est fermé du {interval[start]} au {interval[end]}.",
        ),
        (
            "The office in {city} is open from {hours[start]} to {hours[end]}.",
            "Das Büro in {city} ist von {hours[start]} bis {hours[end]} geöffnet.",
            "Le bureau {city[of]} est ouvert de {hours[start]} à {hours[end]}.",
        ),
        (
            "The market takes place on {weekday1[each]} and {weekday2[each]} from {hours[start]} to {hours[end]}.",
            "Der Markt findet {weekday1[each]} und {weekday2[each]} von {hours[start]} bis {hours[end]} statt.",
            "Le marché a lieu {weekday1[each]} et {weekday2[each]} de {hours[start]} à {hours[end]}.",
        ),
        (
            "The meeting has been moved from {weekday1} to {weekday2} at {time}.",
            "Die Besprechung wurde von {weekday1} auf {weekday2} um {time} verschoben.",
            "La réunion a été déplacée de {weekday1} à {weekday2} à {time}.",
        ),
        (
            "Please call {person} on {weekday} at {time}.",
            "Bitte rufen Sie {person} am {weekday} um {time} an.",
            "Veuillez appeler {person} {weekday} à {time}.",
        ),
        (
            "In {city} it is now {time}.",
            "In {city} ist es jetzt {time}.",
            "À {city}, il est maintenant {time}.",
        ),
        (
            "{person} has reserved a table for {count} people on {day} at {time}.",
            "{person} hat für den {day} um {time} einen Tisch für {count} Personen reserviert.",
            "{person} a réservé une table pour {count} personnes le {day} à {time}.",
        ),
        (
            "{person} works {count} hours a week in an office in {city}.",
            "{person} arbeitet {count} Stunden pro Woche in einem Büro in {city}.",
            "{person} travaille {count} heures par semaine dans un bureau à {city}.",
        ),
        # Shopping and cooking
        (
            "The bill comes to {price} and is dated {date}.",
            "Die Rechnung beträgt {price} und ist vom {date}.",
            "La facture s'élève à {price} et date du {date}.",
        ),
        (
            "{person} paid {price} for {count} {noun}.",
            "{person} hat {price} für {count} {noun} bezahlt.",
            "{person} a payé {price} pour {count} {noun}.",
        ),
        (
            "{person} bought {weight} {solid[of]} at the market on {weekday}.",
            "{person} hat am {weekday} auf dem Markt {weight} {solid[of]} gekauft.",
            "{person} a acheté {weight} {solid[of]} au marché {weekday}.",
        ),
        (
            "The recipe calls for {weight} {solid[of]} and {volume} {liquid[of]}.",
            "Für das Rezept braucht man {weight} {solid[of]} und {volume} {liquid[of]}.",
            "Pour la recette, il faut {weight} {solid[of]} et {volume} {liquid[of]}.",
        ),
        (
            "{person} is bringing {volume} {liquid[of]} and {weight} {solid[of]} to the party.",
            "{person} bringt {volume} {liquid[of]} und {weight} {solid[of]} zur Feier mit.",
            "{person} apporte {volume} {liquid[of]} et {weight} {solid[of]} à la fête.",
        ),
        (
            "{person} ordered {count} {noun} {country[from]}.",
            "{person} hat {count} {noun} {country[from]} bestellt.",
            "{person} a fait venir {count} {noun} {country[from]}.",
        ),
        (
            "The parcel {country[from]} weighs {weight} and arrives on {weekday}.",
            "Das Paket {country[from]} wiegt {weight} und kommt am {weekday} an.",
            "Le colis en provenance {country[from]} pèse {weight} et arrive {weekday}.",
        ),
        (
            "There are {count1} {noun1} and {count2} {noun2} in the warehouse in {city}.",
            "Im Lager in {city} befinden sich {count1} {noun1} und {count2} {noun2}.",
            "Il y a {count1} {noun1} et {count2} {noun2} dans l'entrepôt {city[of]}.",
        ),
        # Numbers in the news
        (
            "In {year}, {million} people visited {country[the]}.",
            "Im Jahr {year} haben {million} Menschen {country[the]} besucht.",
            "En {year}, {million} de personnes ont visité {country[the]}.",
        ),
        (
            "Exports {country[to]} rose by {percent} in {year}.",
            "Die Ausfuhren {country[to]} sind im Jahr {year} um {percent} gestiegen.",
            "Les exportations vers {country[the]} ont augmenté de {percent} en {year}.",
        ),
        (
            "Imports {country[from]} fell by {percent} in {month}.",
            "Die Einfuhren {country[from]} sind im {month} um {percent} gesunken.",
            "Les importations en provenance {country[from]} ont baissé de {percent} en {month}.",
        ),
        (
            "The company sold {number} {noun} {country[in]} in {year}.",
            "Das Unternehmen hat im Jahr {year} {country[in]} {number} {noun} verkauft.",
            "L'entreprise a vendu {number} {noun} {country[in]} en {year}.",
        ),
        (
            "The town near {city} has {number} inhabitants.",
            "Die Stadt bei {city} hat {number} Einwohner.",
            "La ville près {city[of]} compte {number} habitants.",
        ),
        (
            "{person} spent {amount} {country[in]} in {year}.",
            "{person} hat im Jahr {year} {country[in]} {amount} ausgegeben.",
            "{person} a dépensé {amount} {country[in]} en {year}.",
        ),
        (
            "The tower in {city} is {height} high and was built in {year}.",
            "Der Turm in {city} ist {height} hoch und wurde im Jahr {year} gebaut.",
            "La tour {city[of]} mesure {height} de haut et a été construite en {year}.",
        ),
        (
            "The nature park near {city} covers {area}.",
            "Der Naturpark bei {city} ist {area} groß.",
            "Le parc naturel près {city[of]} s'étend sur {area}.",
        ),
        (
            "Downloading {bytes} takes {duration}.",
            "Das Herunterladen von {bytes} dauert {duration}.",
            "Le téléchargement de {bytes} dure {duration}.",
        ),
        # Weather, sport, school
        (
            "At {time}, it is {temperature} in {city}.",
            "Um {time} sind es in {city} {temperature}.",
            "À {time}, il fait {temperature} à {city}.",
        ),
        (
            "In {month}, {rain} of rain fell in {city}.",
            "Im {month} sind in {city} {rain} Regen gefallen.",
            "En {month}, il est tombé {rain} de pluie à {city}.",
        ),
        (
            "Every {weekday}, {person1} runs {distance} with {person2}.",
            "Jeden {weekday} läuft {person1} mit {person2} {distance}.",
            "Chaque {weekday}, {person1} court {distance} avec {person2}.",
        ),
        (
            "{person} took {ordinal} place at the chess tournament in {city}.",
            "{person} hat beim Schachturnier in {city} den {ordinal[n]} Platz belegt.",
            "{person} a pris la {ordinal[feminine]} place au tournoi d'échecs {city[of]}.",
        ),
        (
            "{person} says that {sum[a]} plus {sum[b]} is {sum[c]}.",
            "{person} sagt, dass {sum[a]} plus {sum[b]} {sum[c]} ist.",
            "{person} dit que {sum[a]} plus {sum[b]} font {sum[c]}.",
        ),
        (
            "{sum[c]} minus {sum[a]} is {sum[b]}, {person} writes.",
            "{sum[c]} minus {sum[a]} ist {sum[b]}, schreibt {person}.",
            "{sum[c]} moins {sum[a]} font {sum[b]}, écrit {person}.",
        ),
        (
            "The {ordinal} chapter of the book begins on page {small}.",
            "Das {ordinal} Kapitel des Buches beginnt auf Seite {small}.",
            "Le {ordinal} chapitre du livre commence à la page {small}.",
        ),
    )
]
