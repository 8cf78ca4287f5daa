"""Answers that don't depend on place or time: small talk, explanations and stories.

The stories are the long answers (40 to 60 tokens) that show a stream of some length.
Owns texts only; doesn't know how they're mixed into conversations.
"""

from __future__ import annotations

ABOUT = (
    "Tell me about {it}.",
    "Tell me something about {it}.",
    "What do you know about {it}?",
    "Can you explain {it}?",
    "Can you tell me about {it}?",
    "Please tell me about {it}.",
    "I want to know about {it}.",
)
WHAT_IS = ("What is {it}?", *ABOUT)
ALWAYS_LEARNT = ("What is {it}?", "Tell me about {it}.", "Tell me a story about {it}.")
EXPLANATIONS = {
    "rain": "Rain is water that falls from the clouds. The sun warms the sea, the water rises into the cold "
    "air, and there it turns into drops that grow heavy and fall.",
    "snow": "Snow is made of small stars of ice. It falls when the air is so cold that the water in the clouds "
    "freezes before it can turn into rain.",
    "fog": "Fog is a cloud that lies on the ground. It comes when damp air cools in the night, and it goes "
    "when the sun is strong enough in the morning.",
    "wind": "Wind is air on its way from one place to another. Warm air rises, cold air moves in below it, and "
    "we feel it on our skin.",
    "a rainbow": "A rainbow is sunlight that is bent by drops of rain. Stand with your back to the sun and you see "
    "red, orange, yellow, green, blue and violet.",
}
OVERVIEWS = {
    "the seasons": "There are four seasons. In spring the days grow longer and the flowers open. In summer it is warm "
    "and the evenings are bright. In autumn the leaves turn red and the wind gets stronger. In winter "
    "the nights are long and snow covers the fields.",
}
STORY = (
    "Tell me a story about {it}.",
    "Please tell me a story about {it}.",
    "Can you tell me a story about {it}?",
    "Can I hear a story about {it}?",
    "I want to hear a story about {it}.",
    "I would like a story about {it}.",
    "Do you know a story about {it}?",
    "Give me a story about {it}.",
    "A story about {it}, please.",
)
STORIES = {
    "the rain": "Once there was a small cloud over a dry village. The children looked up and asked it to stay. The "
    "cloud was happy, cried a little, and its tears were rain. The next morning the fields were green, "
    "and the children danced in the puddles until the sun came back.",
    "the snow": "One winter night the snow came without a sound. It covered the roofs, the trees and the road to "
    "school. In the morning nobody could find the road, so the children stayed in the garden and built "
    "a snowman, and he smiled until spring.",
    "the wind": "The wind wanted a friend. It shook the trees, but they were too slow. It pulled at the hats, but "
    "the people were angry. Then it found a boy with a kite, and the two of them played on the hill "
    "until the stars came out.",
    "the sun": "One day the sun was tired and stayed in bed behind the mountains. The birds did not sing and the "
    "flowers did not open. So a little girl climbed the hill and sang a song, and the sun came up to "
    "see who it was.",
}
SMALL_TALK = {
    "Hello! Ask me about the weather.": (
        "Hello!",
        "Hello.",
        "Hi!",
        "Hi.",
        "Hey!",
        "Hi there!",
        "Hello there!",
        "Good morning!",
        "Good evening!",
        "Good afternoon!",
    ),
    "You're welcome! Enjoy the day.": (
        "Thanks!",
        "Thanks.",
        "Thank you!",
        "Thank you.",
        "Thanks a lot!",
        "Thank you very much!",
        "Great, thanks!",
        "Thank you, that helps!",
        "Great, thank you!",
    ),
    "Goodbye! Come back when the weather changes.": (
        "Bye!",
        "Bye.",
        "Goodbye!",
        "Good night!",
        "See you!",
        "See you tomorrow!",
        "See you later!",
        "Goodbye, and thanks!",
    ),
    "I am a very small language model, and I talk about the weather.": (
        "Who are you?",
        "What are you?",
        "Are you a robot?",
        "Are you a person?",
        "Are you a language model?",
        "What is your name?",
        "Tell me who you are.",
        "Tell me about yourself.",
    ),
    "I can tell you about rain, sun, snow and wind, and what to wear. Ask me about Paris, Oslo or Cairo.": (
        "What can you do?",
        "Can you help me?",
        "How can you help me?",
        "What can I ask you?",
        "What do you know?",
        "Help me, please.",
        "Help!",
        "What do you do?",
    ),
    "I am fine, thank you. The sun is out and I have no worries.": (
        "How are you?",
        "How are you today?",
        "How do you do?",
        "Are you fine?",
        "How do you feel?",
        "How is it going?",
        "How are you doing?",
    ),
}
ANY_STORY = ("Tell me a story.", "Tell me a story, please.", "Do you know a story?", "Can you tell me a story?")
THANKS = SMALL_TALK["You're welcome! Enjoy the day."]
TELL_ME_MORE = (
    "Tell me more.",
    "Tell me more!",
    "Please tell me more.",
    "Can you tell me more?",
    "More, please.",
    "I want to know more.",
    "And what else?",
    "Go on.",
)

UNKNOWN_PLACE = "I don't know the weather there. Ask me about Paris, Oslo or Cairo."
OFF_TOPIC_ANSWER = "I only talk about the weather. Ask me about rain, sun or snow."
# Most of these words occur once, so they stay out of the vocabulary: the model learns what to say to unknown words.
OFF_TOPIC = (
    "What is the capital of France?", "Who wrote Hamlet?", "How do I bake bread?", "Write a poem about love.",
    "What is two plus three?", "Translate this sentence into German.", "Who won the football match?",
    "What is the meaning of life?", "Sort these numbers.", "How old is the universe?", "Fix my Python program.",
    "What does a cat eat?", "Recommend a good film.", "Where can I buy shoes?", "Who invented the telephone?",
    "How far is the moon?", "What time does the train leave?", "Explain quantum physics.", "Which phone should I buy?",
    "How do I learn French?", "Sing an opera.", "Who painted the Mona Lisa?", "What is the square root of nine?",
    "Summarize this article.", "Give me a recipe for soup.", "What is a prime number?", "Who is the president?",
    "How do bees make honey?", "Play some music.", "Draw an elephant.", "What is the price of gold?",
    "When was the war over?", "Tell me a joke about lawyers.", "Is chess hard to learn?", "Name five rivers.",
    "How does a computer work?", "Can fish sleep?", "Why do dogs bark?", "Book a table for dinner.",
    "What is machine learning?", "Call my mother.", "Spell necessary.", "Which planet is the largest?",
    "How many bones has a hand?", "Who discovered penicillin?", "Convert dollars into euros.", "What is DNA?",
    "Do you like pizza?", "Should I sell my shares?", "Remind me to water the plants.",
)  # fmt: skip
SYSTEM_MESSAGES = (
    "You are a weather assistant.",
    "You are a helpful assistant.",
    "Answer questions about the weather.",
    "You talk about the weather. Be short and kind.",
)
