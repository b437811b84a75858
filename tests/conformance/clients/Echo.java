// Echoes text and binary of the sizes given after the URL with the JDK's own client, then closes with 1000.

import java.io.ByteArrayOutputStream;
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.WebSocket;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Random;
import java.util.concurrent.BlockingQueue;
import java.util.concurrent.CompletionStage;
import java.util.concurrent.LinkedBlockingQueue;
import java.util.concurrent.TimeUnit;

public class Echo {
    /** Joins the pieces of each message, and passes whole messages, the close code or the fault on. */
    static class Listener implements WebSocket.Listener {
        final BlockingQueue<Object> events = new LinkedBlockingQueue<>();
        private StringBuilder text = new StringBuilder();
        private ByteArrayOutputStream binary = new ByteArrayOutputStream();

        @Override
        public CompletionStage<?> onText(WebSocket socket, CharSequence piece, boolean isLast) {
            text.append(piece);
            if (isLast) {
                events.add(text.toString());
                text = new StringBuilder();
            }
            socket.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onBinary(WebSocket socket, ByteBuffer piece, boolean isLast) {
            byte[] bytes = new byte[piece.remaining()];
            piece.get(bytes);
            binary.writeBytes(bytes);
            if (isLast) {
                events.add(binary.toByteArray());
                binary = new ByteArrayOutputStream();
            }
            socket.request(1);
            return null;
        }

        @Override
        public CompletionStage<?> onClose(WebSocket socket, int code, String reason) {
            events.add(code);
            return null;
        }

        @Override
        public void onError(WebSocket socket, Throwable fault) {
            events.add(fault);
        }

        Object next() throws InterruptedException {
            Object event = events.poll(60, TimeUnit.SECONDS);
            if (event == null) {
                throw new IllegalStateException("no answer within 60 s");
            }
            return event;
        }
    }

    public static void main(String[] arguments) throws Exception {
        Listener listener = new Listener();
        URI target = URI.create(arguments[0]);
        WebSocket socket = HttpClient.newHttpClient().newWebSocketBuilder().buildAsync(target, listener).join();
        Random random = new Random(1);
        for (String argument : Arrays.copyOfRange(arguments, 1, arguments.length)) {
            int size = Integer.parseInt(argument);
            String text = text(size);
            socket.sendText(text, true).join();
            check(text.equals(listener.next()), "text", size);
            byte[] bytes = new byte[size];
            random.nextBytes(bytes);
            socket.sendBinary(ByteBuffer.wrap(bytes), true).join();
            check(listener.next() instanceof byte[] answer && Arrays.equals(bytes, answer), "binary", size);
            System.out.println("java: " + size + " bytes");
        }
        socket.sendClose(WebSocket.NORMAL_CLOSURE, "").join();
        check(listener.next().equals(1000), "close code", 1000);
    }

    /** Text of size bytes with characters of every length that UTF-8 has. */
    private static String text(int size) {
        return "a\u00e9\u20ac\ud83d\ude00".repeat(size / 10) + "x".repeat(size % 10);
    }

    private static void check(boolean isSame, String what, int size) {
        if (!isSame) {
            throw new IllegalStateException("another " + what + " at " + size);
        }
    }
}
