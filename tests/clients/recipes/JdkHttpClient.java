// JDK HttpClient with its defaults: over plain HTTP every request offers an upgrade to HTTP/2.

import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;
import java.util.ArrayList;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

class JdkHttpClient {
    static final String URL = System.getenv("CLIENT_BASE_URL");
    static final String KEY = System.getenv("CLIENT_API_KEY");
    static final String MODEL = System.getenv("CLIENT_MODEL");
    static final String ENDLESS = System.getenv("CLIENT_ENDLESS_MODEL");
    static final List<String> QUESTIONS = strings(System.getenv("CLIENT_QUESTIONS"));
    static final String LONG_QUESTION = QUESTIONS.get(0).repeat(1000);
    static final Pattern CONTENT = Pattern.compile("\"content\":(\"(?:[^\"\\\\]|\\\\.)*\")");
    static final HttpClient client = HttpClient.newHttpClient();

    static HttpRequest chat(String model, String messages, boolean stream, String key) {
        String body = "{\"model\":\"%s\",\"messages\":[%s],\"temperature\":0,\"stream\":%s}"
            .formatted(model, messages, stream);
        return HttpRequest.newBuilder(URI.create(URL + "/chat/completions"))
            .header("Content-Type", "application/json")
            .header("Authorization", "Bearer " + key)
            .POST(HttpRequest.BodyPublishers.ofString(body))
            .build();
    }

    static String message(String role, String quoted) {
        return "{\"role\":\"%s\",\"content\":%s}".formatted(role, quoted);
    }

    // The answer's text as JSON has it, quotes included; a stream's pieces put together.
    static String answer(String json) {
        Matcher found = CONTENT.matcher(json);
        StringBuilder text = new StringBuilder();
        while (found.find()) {
            String piece = found.group(1);
            text.append(piece, 1, piece.length() - 1);
        }
        return '"' + text.toString() + '"';
    }

    static String ask(String model, String messages, boolean stream, String key) throws Exception {
        HttpRequest asked = chat(model, messages, stream, key);
        if (stream) {
            var response = client.send(asked, BodyHandlers.ofLines());
            String lines = response.body().collect(Collectors.joining("\n"));
            if (response.statusCode() != 200) throw new Exception("status " + response.statusCode() + ": " + lines);
            return answer(lines);
        }
        var response = client.send(asked, BodyHandlers.ofString());
        if (response.statusCode() != 200) {
            throw new Exception("status " + response.statusCode() + ": " + response.body());
        }
        return answer(response.body());
    }

    static String overTurns(boolean stream) throws Exception {
        List<String> messages = new ArrayList<>(), answers = new ArrayList<>();
        for (String question : QUESTIONS) {
            messages.add(message("user", quoted(question)));
            answers.add(ask(MODEL, String.join(",", messages), stream, KEY));
            messages.add(message("assistant", answers.get(answers.size() - 1)));
        }
        return "[" + String.join(",", answers) + "]";
    }

    static String leave() throws Exception {
        HttpRequest asked = chat(ENDLESS, message("user", "\"Tell me more.\""), true, KEY);
        try (var body = client.send(asked, BodyHandlers.ofInputStream()).body()) {
            return quoted(new String(body.readNBytes(200)));
        }
    }

    static String run(String scenario) throws Exception {
        String hello = message("user", "\"Hello\"");
        return switch (scenario) {
            case "whole" -> overTurns(false);
            case "streamed" -> overTurns(true);
            case "leave" -> leave();
            case "too_long" -> ask(MODEL, message("user", quoted(LONG_QUESTION)), false, KEY);
            case "too_long_streamed" -> ask(MODEL, message("user", quoted(LONG_QUESTION)), true, KEY);
            case "unknown_model" -> ask("no-such-model", hello, false, KEY);
            case "wrong_key" -> ask(MODEL, hello, false, "sk-wrong");
            default -> throw new Exception("no scenario " + scenario);
        };
    }

    public static void main(String[] arguments) throws Exception {
        System.out.println("{\"versions\":{\"JDK\":\"" + Runtime.version().toString() + "\"},\"scenarios\":["
            + "\"whole\",\"streamed\",\"leave\",\"too_long\",\"too_long_streamed\",\"unknown_model\",\"wrong_key\"]}");
        var lines = new BufferedReader(new InputStreamReader(System.in));
        for (String line = lines.readLine(); line != null; line = lines.readLine()) {
            try {
                System.out.println("{\"answers\":" + run(line.strip()) + "}");
            } catch (Exception error) {
                System.out.println("{\"error\":" + quoted(String.valueOf(error)) + "}");
            }
        }
        System.exit(0);
    }

    static String quoted(String text) {
        return '"' + text.replace("\\", "\\\\").replace("\"", "\\\"").replace("\n", "\\n").replace("\r", "\\r") + '"';
    }

    static List<String> strings(String json) {
        List<String> found = new ArrayList<>();
        Matcher each = Pattern.compile("\"([^\"]*)\"").matcher(json);
        while (each.find()) found.add(each.group(1));
        return found;
    }
}
